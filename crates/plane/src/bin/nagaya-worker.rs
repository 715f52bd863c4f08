//! A worker without Python: `nagaya-worker FD`. Tests and benches start it; a holder in Python has its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    let fd = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(fd) = fd else {
        eprintln!("usage: nagaya-worker FD");
        return ExitCode::from(2);
    };
    ExitCode::from(nagaya_plane::worker::main(fd) as u8)
}
