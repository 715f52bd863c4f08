//! `nagaya._core`: what Python may ask of the plane, and a machine of its devices. The contract is `src/nagaya/_core.pyi`.

mod frontend;
mod heap;

use std::borrow::Cow;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nagaya_plane::block::qcow2;
use nagaya_plane::holder::{self, PlaneError};
use nagaya_plane::seccomp;
use nagaya_plane::shares::Resource;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Plane>()?;
    module.add_class::<frontend::VhostFrontend>()?;
    module.add_class::<heap::HeapImage>()?;
    module.add_function(wrap_pyfunction!(worker_main, module)?)?;
    module.add_function(wrap_pyfunction!(qcow2_create, module)?)?;
    module.add_function(wrap_pyfunction!(seccomp_compile, module)?)?;
    module.add_function(wrap_pyfunction!(simulate, module)?)?;
    Ok(())
}

#[pyclass(frozen, module = "nagaya._core")]
struct Plane(holder::Plane);

fn error(error: PlaneError) -> PyErr {
    match error {
        PlaneError::Config(reason) => PyValueError::new_err(reason),
        PlaneError::NoDevice(id) => PyKeyError::new_err(id),
        PlaneError::Io(error) => error.into(),
    }
}

#[pymethods]
impl Plane {
    #[new]
    fn new(worker_argv: Vec<String>) -> PyResult<Plane> {
        holder::Plane::new(worker_argv).map(Plane).map_err(error)
    }

    fn device_add(&self, py: Python<'_>, config: &str, fds: Vec<RawFd>) -> PyResult<()> {
        let fds = fds.into_iter().map(duplicate).collect::<io::Result<Vec<OwnedFd>>>()?;
        py.detach(|| self.0.device_add(config, fds)).map_err(error)
    }

    fn device_del(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        py.detach(|| self.0.device_del(id)).map_err(error)
    }

    fn set_layers(&self, py: Python<'_>, id: &str, config: &str, fds: Vec<RawFd>) -> PyResult<()> {
        let fds = fds.into_iter().map(duplicate).collect::<io::Result<Vec<OwnedFd>>>()?;
        py.detach(|| self.0.set_layers(id, config, fds)).map_err(error)
    }

    fn set_faults(&self, py: Python<'_>, id: &str, faults: &str) -> PyResult<()> {
        py.detach(|| self.0.set_faults(id, faults)).map_err(error)
    }

    fn job_start(&self, py: Python<'_>, config: &str, fds: Vec<RawFd>) -> PyResult<()> {
        let fds = fds.into_iter().map(duplicate).collect::<io::Result<Vec<OwnedFd>>>()?;
        py.detach(|| self.0.job_start(config, fds)).map_err(error)
    }

    fn job_end(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        py.detach(|| self.0.job_end(id)).map_err(error)
    }

    fn set_shares(&self, py: Python<'_>, nodes: &str) -> PyResult<()> {
        py.detach(|| self.0.set_shares(Resource::Disk, nodes)).map_err(error)
    }

    fn set_network_shares(&self, py: Python<'_>, nodes: &str) -> PyResult<()> {
        py.detach(|| self.0.set_shares(Resource::Network, nodes)).map_err(error)
    }

    fn query_arbiter(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.query_arbiter())
    }

    fn query_demand(&self, py: Python<'_>, anew: bool) -> String {
        py.detach(|| self.0.query_demand(anew))
    }

    fn query(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.query())
    }

    fn query_ports(&self, py: Python<'_>, network: Option<String>) -> String {
        py.detach(|| self.0.query_ports(network.as_deref()))
    }

    fn order_port(&self, py: Python<'_>, id: &str, order: &str, fds: Vec<RawFd>) -> PyResult<String> {
        let fds = fds.into_iter().map(duplicate).collect::<io::Result<Vec<OwnedFd>>>()?;
        py.detach(|| self.0.order_port(id, order, fds)).map_err(error)
    }

    fn set_balloon(&self, py: Python<'_>, id: &str, wish: &str) -> PyResult<()> {
        py.detach(|| self.0.set_balloon(id, wish)).map_err(error)
    }

    fn query_balloons(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.query_balloons())
    }

    fn set_memory(&self, py: Python<'_>, id: &str, requested: u64) -> PyResult<()> {
        py.detach(|| self.0.set_memory(id, requested)).map_err(error)
    }

    fn query_memory(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.query_memory())
    }

    fn event_fd(&self) -> RawFd {
        self.0.event_fd()
    }

    fn take_events(&self) -> Vec<String> {
        self.0.take_events()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

/// The caller keeps its own.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1; if it is not open, duplicating it fails.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

#[pyfunction]
fn worker_main(py: Python<'_>, control_fd: RawFd) -> i32 {
    py.detach(|| nagaya_plane::worker::main(control_fd))
}

#[pyfunction]
fn qcow2_create(
    py: Python<'_>,
    path: PathBuf,
    size: u64,
    backing_path: &str,
    backing_format: &str,
) -> PyResult<()> {
    let backing = (!backing_path.is_empty()).then_some((backing_path, backing_format));
    Ok(py.detach(|| qcow2::layout::create(&path, size, backing))?)
}

#[pyfunction]
fn seccomp_compile(policy: &str) -> PyResult<Cow<'static, [u8]>> {
    Ok(Cow::Owned(seccomp::compile(policy).map_err(PyValueError::new_err)?))
}

#[pyfunction]
fn simulate(py: Python<'_>, scenario: &str) -> PyResult<String> {
    py.detach(|| {
        let scenario = serde_json::from_str(scenario).map_err(|error| error.to_string())?;
        let outcome = nagaya_plane::simulation::run(&scenario)?;
        serde_json::to_string(&outcome).map_err(|error| error.to_string())
    })
    .map_err(PyValueError::new_err)
}
