"""A PKCS#11 library in this process: loaded once, started for many threads, started anew, and not after a fork.

The package python-pkcs11, the extra `hsm`, is imported by who has a token only. A library knows this process and not
our objects: what `trust.pkcs11` holds of it ends when its `generation` does.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trust.keys import KeyUnavailableError

_OS_LOCKING_OK = 2
_OK = 0


@dataclass(slots=True)
class Library:
    """One loaded PKCS#11 library. It knows this process, not our objects: started anew, every session is gone."""

    path: Path
    loaded: Any = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    busy: int = 0
    generation: int = 0
    renewing: bool = False
    failed_at: float = float("-inf")
    """When a token was still away after the library had been started anew (monotonic)."""
    one_at_a_time: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Guards each operation of a library that several threads must not enter."""


LIBRARIES: dict[Path, Library] = {}
_LOCK = threading.Lock()


def _forget_parent() -> None:
    """In a child: libraries are started anew, and no lock is held by a thread that was left behind."""
    global _LOCK  # noqa: PLW0603 - the parent's may be held for ever
    _LOCK = threading.Lock()
    LIBRARIES.clear()


os.register_at_fork(after_in_child=_forget_parent)


def library_at(path: Path) -> Library:
    """The one of this path; nothing is loaded yet."""
    with _LOCK:
        return LIBRARIES.setdefault(path, Library(path))


def package() -> Any:
    """The package, where it is installed. Raises `KeyUnavailableError`."""
    global _module  # noqa: PLW0603 - imported once, and only by who has a token
    if _module is None:
        try:
            import pkcs11
        except ImportError:
            raise KeyUnavailableError(
                "keys in a token need the package python-pkcs11: install Relais with its extra `hsm`"
            ) from None
        _module = pkcs11
    return _module


_module: Any = None


def load(library: Library) -> Any:
    """The package's own handle of the library, started. Raises `KeyUnavailableError`."""
    p11 = package()
    with _LOCK:
        if library.loaded is None:
            try:
                library.loaded = p11.lib(str(library.path))
            except (p11.PKCS11Error, OSError):
                raise KeyUnavailableError(f"the PKCS#11 library {library.path} cannot be loaded") from None
            start(library)
        return library.loaded


class _Start(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS (PKCS#11 v2.40 §3.7)."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


def start(library: Library) -> None:
    """Start the library anew for use by many threads, which the package does not ask for. Where that cannot be had, one
    thread enters it at a time."""
    try:
        functions = ctypes.CDLL(str(library.path))
        finalize, initialize = functions.C_Finalize, functions.C_Initialize
    except (OSError, AttributeError):
        library.one_at_a_time = threading.Lock()
        with suppress(Exception):
            library.loaded.reinitialize()
        return
    finalize.restype = initialize.restype = ctypes.c_ulong
    finalize(None)
    arguments = _Start(flags=_OS_LOCKING_OK)
    if initialize(ctypes.byref(arguments)) != _OK:
        library.one_at_a_time = threading.Lock()
        initialize(None)


def refusals() -> tuple[type[Exception], ...]:
    """What a token answers that is there and will not: asking it anew would only disturb everybody else."""
    p11 = package()
    return (
        p11.ArgumentsBad,
        p11.AttributeTypeInvalid,
        p11.AttributeValueInvalid,
        p11.DataInvalid,
        p11.DataLenRange,
        p11.DeviceMemory,
        p11.DomainParamsInvalid,
        p11.EncryptedDataInvalid,
        p11.EncryptedDataLenRange,
        p11.FunctionNotSupported,
        p11.FunctionRejected,
        p11.KeySizeRange,
        p11.KeyTypeInconsistent,
        p11.MechanismInvalid,
        p11.MechanismParamInvalid,
        p11.PinExpired,
        p11.SessionCount,
        p11.TemplateIncomplete,
        p11.TemplateInconsistent,
        p11.TokenWriteProtected,
        p11.UserPinNotInitialized,
    )
