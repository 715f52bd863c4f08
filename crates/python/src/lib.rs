//! `nagaya._core`: what Python may ask of the plane. The contract is `src/nagaya/_core.pyi`.
use pyo3::prelude::*;

#[pymodule]
fn _core(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
