//! `nagaya._core.VhostFrontend`: one vhost-user backend, as a machine of the kvm engine sees it.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nagaya_frontend::{Frontend, Region, Ring};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

#[pyclass(frozen, module = "nagaya._core")]
pub struct VhostFrontend(Frontend);

/// (guest, size, host, fd, offset)
type RegionTuple = (u64, u64, u64, RawFd, u64);
/// (index, size, base, desc, driver, device, kick, call, err)
type RingTuple = (u16, u16, u16, u64, u64, u64, RawFd, RawFd, RawFd);

#[pymethods]
impl VhostFrontend {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, timeout: f64) -> PyResult<Self> {
        let timeout = Duration::try_from_secs_f64(timeout)
            .map_err(|error| PyValueError::new_err(format!("timeout: {error}")))?;
        Ok(Self(py.detach(|| Frontend::connect(&path, timeout))?))
    }

    #[getter]
    fn features(&self) -> u64 {
        self.0.features
    }

    #[getter]
    fn queues(&self) -> u16 {
        self.0.queues
    }

    #[getter]
    fn has_config(&self) -> bool {
        self.0.has_config
    }

    fn start(
        &self,
        py: Python<'_>,
        features: u64,
        regions: Vec<RegionTuple>,
        rings: Vec<RingTuple>,
    ) -> PyResult<()> {
        let regions: Vec<_> = regions.iter().map(region).collect::<io::Result<_>>()?;
        let rings: Vec<_> = rings.iter().map(ring).collect::<io::Result<_>>()?;
        Ok(py.detach(|| self.0.start(features, &regions, &rings))?)
    }

    fn stop(&self, py: Python<'_>, indices: Vec<u16>) -> PyResult<Vec<u16>> {
        Ok(py.detach(|| self.0.stop(&indices))?)
    }

    fn read_config(&self, py: Python<'_>, offset: u32, size: u32) -> PyResult<Cow<'static, [u8]>> {
        Ok(Cow::Owned(py.detach(|| self.0.read_config(offset, size))?))
    }

    fn write_config(&self, py: Python<'_>, offset: u32, content: Vec<u8>) -> PyResult<()> {
        Ok(py.detach(|| self.0.write_config(offset, &content))?)
    }

    fn socket_fd(&self) -> RawFd {
        self.0.socket().as_raw_fd()
    }

    fn request_fd(&self) -> RawFd {
        self.0.requests().unwrap_or(-1)
    }

    fn take_request(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(py.detach(|| self.0.take_request())?)
    }

    fn close(&self) {
        self.0.close();
    }
}

fn region(&(guest, size, host, fd, offset): &RegionTuple) -> io::Result<Region<'static>> {
    Ok(Region { guest, size, host, fd: borrowed(fd)?, offset })
}

fn ring(
    &(index, size, base, desc, driver, device, kick, call, err): &RingTuple,
) -> io::Result<Ring<'static>> {
    let (kick, call, err) = (borrowed(kick)?, borrowed(call)?, borrowed(err)?);
    Ok(Ring { index, size, base, desc, driver, device, kick, call, err })
}

fn borrowed(fd: RawFd) -> io::Result<BorrowedFd<'static>> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1; the caller keeps it open during the call, and if it is not, duplicating or sending it fails.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
