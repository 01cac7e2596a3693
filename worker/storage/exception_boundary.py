"""Make every unexpected exception of a driver or its SDK a StorageError, as `Driver` promises."""

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, TypeVar

from worker.storage.driver import ObjectStat, StaleUpload
from worker.storage.errors import InvalidKey, StorageError, UnexpectedAnswer

_Class = TypeVar("_Class", bound=type)
_NOT_OF_A_STORE = {"worker", "tasks", "celery", "billiard"}
"""Packages whose exceptions end a job, such as a cancellation or a time limit, and are no error of a store."""
_LOCAL = {"location", "close"}
"""Methods that send no request."""
_OS_ERRORS = "_translate_os_error"
"""The function of a driver that returns the StorageError of an OSError, where it has one."""


def exception_boundary(driver: _Class) -> _Class:
    """Decorate a driver: its public methods, and the iterators that they return, raise StorageErrors only.

    The drivers translate what their SDKs document. This is for the rest: an answer without a header that the SDK takes
    for granted, a time in the year 30345, a name that only the SDK refuses. It becomes an UnexpectedAnswer about the
    object that was asked for. What the caller's own body or callback raises passes unchanged, an OSError too: so a
    driver of files leaves all its OSErrors to its `_translate_os_error`, which is called here.
    """
    for name in dir(driver):
        method = inspect.getattr_static(driver, name)
        if inspect.isfunction(method) and not name.startswith("_") and name not in _LOCAL:
            setattr(driver, name, _guarded(method))
    return driver


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = method(self, *args, **kwargs)
        except Exception as error:
            if _passes(error) or _is_of_caller(error, [*args, *kwargs.values()]):
                raise
            raise _translated(self, error, args)  # noqa: B904 - it has its cause; a variable of it would be a cycle
        return _guarded_iterator(self, result, args) if isinstance(result, Iterator) else result

    return guarded


def _guarded_iterator(driver: Any, rows: Iterator[Any], args: tuple[Any, ...]) -> Iterator[Any]:
    try:
        yield from rows
    except Exception as error:
        if _passes(error):
            raise
        raise _translated(driver, error, args)  # noqa: B904 - it has its cause


def _passes(error: Exception) -> bool:
    return isinstance(error, StorageError) or type(error).__module__.partition(".")[0] in _NOT_OF_A_STORE


def _is_of_caller(error: Exception, arguments: list[Any]) -> bool:
    """Return whether a function or generator that the caller passed raised the error: the traceback has its code."""
    codes = set(map(_code_of, arguments)) - {None}
    passed = error.__traceback__
    while passed is not None and passed.tb_frame.f_code not in codes:
        passed = passed.tb_next
    return passed is not None


def _code_of(argument: Any) -> CodeType | None:
    """Return the code of a function, a partial of one, a body to read, or a generator; None of anything else."""
    call = getattr(argument, "read", argument)
    code: CodeType | None = getattr(getattr(call, "func", call), "__code__", None) or getattr(call, "gi_code", None)
    return code


def _translated(driver: Any, error: Exception, args: tuple[Any, ...]) -> StorageError:
    """Return the StorageError of an exception, with its cause where that says more."""
    what = f"{driver.name}: {_what(args)}"
    if isinstance(error, OSError) and hasattr(driver, _OS_ERRORS):
        translated: StorageError = getattr(driver, _OS_ERRORS)(error, what)
        translated.__cause__ = error
        return translated
    if isinstance(error, UnicodeEncodeError):
        translated = InvalidKey(f"{what}: it is not valid Unicode (lone surrogate)")
    else:  # without the text of the error, which may hold a secret
        unexpected = f"the store or its SDK raised an unexpected error ({type(error).__name__})"
        translated = UnexpectedAnswer(f"{what}: {unexpected}")
    translated.__cause__ = None  # a traceback shows no context then
    return translated


def _what(args: tuple[Any, ...]) -> str:
    """Return the target of a call for its message: bucket and key, or the description of a stale upload."""
    for argument in args:
        if isinstance(argument, ObjectStat):
            return f"{argument.bucket}/{argument.key}"
        if isinstance(argument, StaleUpload):
            return argument.description
    return "/".join(argument for argument in args[:2] if isinstance(argument, str)) or "the store"
