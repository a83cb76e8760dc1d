"""The embedded engine: the real `tritonserver` of the wheel nvidia-pytriton, started directly on the repository.

The wheel brings the server (2.51.0) and of backends only `python`; our stand-ins for `onnxruntime` and `pytorch`
(serve/backends) run as Python-based backends, so that the folder which the production container serves is served here
unchanged. Everything that would fail later with an obscure message is looked at before anything starts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.cache import SHELL_SAFE, cache_folder, servers_folder
from serve.errors import EngineError, RepositoryError, SharedMemoryError
from serve.leftovers import MARKER, SHARED_MEMORY
from serve.plan import Launch, Plan, triton_arguments

WHEEL = "nvidia-pytriton"
STAND_INS = Path(__file__).parent / "backends"
# What each stand-in needs in the environment of the running Python.
STAND_IN_PACKAGES = {"onnxruntime": "onnxruntime", "pytorch": "torch"}
# One region of 1 MiB per stub at start, which grows by 1 MiB with the largest batch in flight; 64 rows of 64 KiB of
# text are 4 MiB, and a batch and its answers may be there together.
SHM_MIB_PER_INSTANCE = 8


@dataclass(frozen=True)
class Wheel:
    """The installed wheel."""

    version: str
    server: Path
    libraries: Path
    python_backend: Path
    stub: Path


def find_wheel() -> Wheel:
    """Find the wheel and the stub for the running Python.

    Raises:
        EngineError: if the wheel is missing or has no stub for this Python.
    """
    try:
        distribution = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineError(
            f"the embedded Triton is not installed in {sys.prefix}: pip install {WHEEL}==0.7.0 "
            "(or use --engine container where Docker is)"
        ) from error
    site = Path(str(distribution.locate_file("")))
    triton = site / "pytriton" / "tritonserver"
    stubs = triton / "python_backend_stubs"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / python / "triton_python_backend_stub"
    if not stub.exists():
        known = ", ".join(sorted(p.name for p in stubs.glob("*") if p.is_dir())) or "no Python"
        raise EngineError(
            f"{WHEEL} {distribution.version} has no stub for Python {python} (it has {known}); use Python 3.11 or 3.12"
        )
    return Wheel(
        version=distribution.version,
        server=triton / "bin" / "tritonserver",
        libraries=site / "nvidia_pytriton.libs",
        python_backend=triton / "backends" / "python",
        stub=stub,
    )


def lay_out_backends(wheel: Wheel) -> Path:
    """The backend directory in the cache, made of real copies (Triton refuses links that leave it); made once.

    Its name is the hash of what it holds, and it appears by rename, so that servers starting together share it.
    """
    files = {Path("python") / p.name: p for p in wheel.python_backend.iterdir() if p.is_file()}
    files[Path("python") / wheel.stub.name] = wheel.stub
    files |= {Path(backend) / "model.py": STAND_INS / backend / "model.py" for backend in STAND_IN_PACKAGES}
    # What both stand-ins import lies where Triton's own module for stubs lies, on the path of every stub.
    files |= {Path("python") / shared.name: shared for shared in STAND_INS.glob("[!_]*.py")}
    digest = hashlib.sha256()
    for relative, source in sorted(files.items()):
        digest.update(f"{relative}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    target = cache_folder() / f"backends-{digest.hexdigest()[:16]}"
    if all(_same_size(target / relative, source) for relative, source in files.items()):
        return target
    unfinished = Path(tempfile.mkdtemp(prefix="backends-", suffix=".tmp", dir=target.parent))
    try:
        for relative, source in files.items():
            (unfinished / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, unfinished / relative)
        (unfinished / "python" / wheel.stub.name).chmod(0o755)
        if target.exists():  # damaged: a running server keeps its open files
            target.rename(unfinished / "replaced")
        unfinished.rename(target)
    except OSError as error:
        if not all(_same_size(target / relative, source) for relative, source in files.items()):
            raise EngineError(f"the backend directory cannot be written to {target}: {error}") from error
    finally:
        shutil.rmtree(target / "replaced", ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _same_size(copy: Path, source: Path) -> bool:
    return copy.is_file() and copy.stat().st_size == source.stat().st_size


def environment(wheel: Wheel, token: str) -> dict[str, str]:
    """The environment of the server and, inherited, of its stubs."""
    library_folders = [str(wheel.libraries), str(sysconfig.get_config_var("LIBDIR") or "")]
    return {
        **os.environ,
        # LIBDIR, or the stub loads another libpython than the one that it was started for.
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*library_folders, os.environ.get("LD_LIBRARY_PATH", "")])),
        # The stub's Python finds its packages by the first `python3` on PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # OpenMP threads that spin while they wait take the cores from the other instances.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        # The official builds of ONNX Runtime send events about what is served to Microsoft, unless told not to.
        "ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1"),
        MARKER: token,
        # As serve/backends/shared_weights.py reads it, which cannot be imported here without ONNX Runtime.
        "BET_SHARED_WEIGHTS": str(servers_folder() / f"{token}.weights"),
    }


def require_libraries(server: Path, stub: Path, env: dict[str, str]) -> None:
    """Start server and stub once without work, so that a library that does not fit is named now.

    Raises:
        EngineError: in the loader's own words; if the stub finds another libpython than the one that runs here; or if
            numpy is one that the stub cannot read.
    """
    trace = _run([stub], env | {"LD_TRACE_LOADED_OBJECTS": "1"})
    libraries = dict(line.strip().partition(" => ")[::2] for line in trace.stdout.splitlines() if "=>" in line)
    missing = [name for name, place in libraries.items() if "not found" in place]
    if missing:
        raise EngineError(f"{stub.name} does not find {', '.join(missing)}; install the package that has it")
    ours = _own_libpython()
    for name, place in libraries.items():
        found = Path(place.partition(" (")[0])
        if name.startswith("libpython") and ours is not None and found.resolve() != ours:
            raise EngineError(f"{stub.name} would load {found} where this Python runs on {ours}; see LD_LIBRARY_PATH")
    for program, arguments in ((server, ["--help"]), (stub, [])):
        ran = _run([program, *arguments], env)
        if ran.returncode not in (0, 1):  # both end with 1 after printing what they expect
            reason = (ran.stderr or ran.stdout).strip().splitlines() or [f"exit status {ran.returncode}"]
            raise EngineError(f"{program.name} does not run here: {reason[-1]}; the wheel needs glibc 2.35")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.partition(".")[0]) >= 2:
        raise EngineError(
            f"numpy {numpy} is installed; with 2 or newer the stub of {WHEEL} crashes on text: pip install 'numpy<2'"
        )


def _run(command: Sequence[Path | str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be executed here: {error.strerror}") from error


def _own_libpython() -> Path | None:
    """The libpython that this process runs on; None where the interpreter has it built in."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        name = line.rpartition(" ")[2]
        if Path(name).name.startswith("libpython"):
            return Path(name).resolve()
    return None


def require_backends(plan: Plan) -> None:
    """Raise where a model needs a backend, or a stand-in a package, that is not there.

    Raises:
        RepositoryError: for a backend without a stand-in.
        EngineError: for a missing package.
    """
    for model in plan.repository.loaded_with(plan.models):
        if model.backend in ("ensemble", "python"):
            continue
        package = STAND_IN_PACKAGES.get(model.backend)
        if package is None:
            raise RepositoryError(
                f"model {model.name!r} needs the backend {model.backend!r}, which the embedded engine does not have "
                f"(it has python, {', '.join(STAND_IN_PACKAGES)}); use --engine container"
            )
        if importlib.util.find_spec(package) is None:
            raise EngineError(f"model {model.name!r} needs the package {package}: pip install {package}")


def require_shared_memory(plan: Plan) -> None:
    """Raise where /dev/shm has less room than the model instances may need.

    Raises:
        SharedMemoryError: with the need and what is there.
    """
    instances = sum(m.instances for m in plan.repository.loaded_with(plan.models) if m.backend != "ensemble")
    need = instances * SHM_MIB_PER_INSTANCE
    room = os.statvfs(SHARED_MEMORY)
    free = room.f_bavail * room.f_frsize // 2**20
    if free < need:
        raise SharedMemoryError(
            f"{SHARED_MEMORY} has {free} MiB free; {instances} model instances need {need} MiB "
            f"({SHM_MIB_PER_INSTANCE} MiB each): enlarge it (Docker: --shm-size=1g), or lower the instance counts"
        )


def prepare(plan: Plan) -> Launch:
    """Check this machine, lay out the backends, and return what to execute.

    Raises:
        EngineError, RepositoryError, SharedMemoryError: see the checks above.
    """
    wheel = find_wheel()
    require_backends(plan)
    env = environment(wheel, plan.token)
    require_shared_memory(plan)
    backends = lay_out_backends(wheel)
    # The copy: the original has its library folder built in, relative to where it lies.
    require_libraries(wheel.server, backends / "python" / wheel.stub.name, env)
    repository = plan.repository.path
    if not SHELL_SAFE.fullmatch(str(repository)):
        link = servers_folder() / f"{plan.token}.repository"
        link.symlink_to(repository)
        repository = link
    arguments = triton_arguments(plan, repository, plan.host, plan.ports)
    return Launch((str(wheel.server), f"--backend-directory={backends}", *arguments), env)
