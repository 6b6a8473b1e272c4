"""The model store: ``<store>/<model>/<version>/``, and how a version appears in it in one step."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    StoreError,
    is_disk_full,
    nearest,
)
from .manifest import FILE_NAME, Manifest

try:
    import fcntl
except ImportError:  # Windows has no flock: stale staging folders stay until removed by hand
    fcntl = None  # type: ignore[assignment]

STAGING, REPORTS = ".staging", ".reports"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Store:
    """A folder of models, each a folder of numbered versions.

    A version is prepared in ``<store>/.staging/…``, outside its model's folder, and renamed into
    place when it is complete; published versions are never changed. The newest version is the
    largest number.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def check(self) -> None:
        """Raise `StoreError` unless the store is a folder that can be listed, or nothing yet."""
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"the store {self.root} is a file, not a folder; give a folder with --store")

    def models(self) -> list[str]:
        """Names of the models with at least one version, sorted. Raises `StoreError`."""
        return [name for name in self.folders() if self.versions(name)]

    def folders(self) -> list[str]:
        """Names of the folders in which versions may be, sorted. Raises `StoreError`."""
        self.check()
        try:
            names = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
        except FileNotFoundError:
            raise StoreError(f"there is no store at {self.root}; make one with: servable export NAME") from None
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be read: {error.strerror}") from error
        return [name for name in names if not name.startswith(".")]

    def versions(self, model: str) -> list[int]:
        """Version numbers of a model in ascending order; empty if the model does not exist."""
        folder = self.root / model
        if not model or model.startswith(".") or Path(model).name != model or not folder.is_dir():
            return []  # a name never leads out of the store, nor into its hidden folders
        return sorted(
            int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()
        )

    def path(self, model: str, version: int | None = None) -> Path:
        """Folder of a version, the newest where none is given.

        Raises `NotFoundError` naming what the store has instead.
        """
        versions = self.versions(model)
        if not versions:
            raise NotFoundError(f"no model {model!r} in the store {self.root}; {nearest(model, self.models())}")
        if version is None:
            version = versions[-1]
        if version not in versions:
            raise NotFoundError(
                f"model {model!r} in the store {self.root} has no version {version}; "
                f"versions: {', '.join(map(str, versions))}"
            )
        return self.root / model / str(version)

    def reports(self, model: str, version: int) -> Path:
        """Where the report of a version's export lies, outside of what servers read."""
        return self.root / REPORTS / f"{model}-{version}"

    @contextmanager
    def staging(self, model: str) -> Iterator[Path]:
        """A fresh folder to prepare a version in; removed on exit unless it was published.

        Leftovers of exports that were killed are removed first: a live export holds a file lock,
        which the kernel releases with its process. Raises `InvalidArgumentError` for a name that cannot be
        one (`check_name`), and `StoreError` or `ResourceExhaustedError` if the store cannot be written.
        """
        check_name(model)
        self.check()
        parent = self.root / STAGING
        with _disk_errors(self.root):
            lock, descriptor = self._lock(parent, model)
        folder = lock.with_suffix("")
        try:
            with _disk_errors(self.root):
                self._sweep(parent)
                folder.mkdir(mode=0o700)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            with _ignore_missing():
                parent.rmdir()

    @staticmethod
    def _lock(parent: Path, model: str) -> tuple[Path, int]:
        """A new lock file, held; the staging folder of that name may be made only after it.

        Of processes that end or sweep meanwhile, one may remove the folder before the file is made or
        the file before it is held: then begin again.
        """
        while True:
            parent.mkdir(parents=True, exist_ok=True)
            lock = parent / f"{model}-{secrets.token_hex(4)}.lock"
            try:
                descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except (FileNotFoundError, FileExistsError):
                continue
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return lock, descriptor
            os.close(descriptor)

    @staticmethod
    def _sweep(parent: Path) -> None:
        """Remove staging folders whose process is gone: nobody holds their lock, or they have none any more."""
        if not fcntl:
            return
        for folder in parent.glob("*/"):
            if not folder.with_name(f"{folder.name}.lock").exists():
                shutil.rmtree(folder, ignore_errors=True)
        for lock in parent.glob("*.lock"):
            with _ignore_missing(), lock.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)

    def check_free(self, model: str, version: int) -> None:
        """Raise `AlreadyExistsError` if the model has this version."""
        if (self.root / model / str(version)).exists():
            raise AlreadyExistsError(
                f"{self.root / model / str(version)} exists already, and a published version is never changed; "
                "give another number, or none for the next one"
            )

    def publish(self, staged: Path, manifest: Manifest, number: int | None = None) -> tuple[Path, Manifest]:
        """Rename a finished folder to a version number, the model's next one where none is given.

        Returns the version's folder and the manifest as published. Of exports that run at the same
        time, each gets a number of its own: a rename onto a taken number fails and the next is tried.
        Raises `AlreadyExistsError` if the given number is taken.
        """
        model_folder = self.root / manifest.model
        model_folder.mkdir(parents=True, exist_ok=True)
        staged.chmod(0o755)  # private until now; a server may run as another user
        version = number or (self.versions(manifest.model) or [0])[-1] + 1
        while True:
            manifest = manifest.with_version(version)
            (staged / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")
            target = model_folder / str(version)
            try:
                staged.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if number:
                    self.check_free(manifest.model, number)
                    raise
                version += 1
            else:
                return target, manifest


def check_name(model: str) -> None:
    """Raise `InvalidArgumentError` unless a model can have this name: it is a folder's, and part of URLs."""
    if not _MODEL_NAME.fullmatch(model):
        raise InvalidArgumentError(
            f"{model!r} cannot be a model name: use letters, digits, '.', '_' and '-', and begin with a letter or digit"
        )


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turn an OSError of writing to the store into an error that names the store."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not _related(Path(error.filename), root):
            raise  # some other file: not the store's fault
        if is_disk_full(error):
            raise ResourceExhaustedError(f"no space left for the store {root}; nothing was published") from error
        raise StoreError(
            f"the store {root} cannot be written: {error.strerror or error}; nothing was published"
        ) from error


def _related(path: Path, root: Path) -> bool:
    return path == root or root in path.parents or path in root.parents


@contextmanager
def _ignore_missing() -> Iterator[None]:
    """Another process may have removed the file or filled the folder in between."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise
