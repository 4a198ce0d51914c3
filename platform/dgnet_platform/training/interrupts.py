"""What a command does around long work: keep others out of its folder, listen to Ctrl-C, and stay responsive."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Answer = TypeVar("Answer")


def in_thread(fit: Callable[[], Answer], meanwhile: Callable[[], None] = lambda: None) -> Answer:
    """Call Ray's `fit` in another thread, and `meanwhile` now and then in this one.

    In the main thread Ray would take Ctrl-C for itself.
    """
    results: list[Answer | BaseException] = []

    def call() -> None:
        try:
            results.append(fit())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=call, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(5)
        meanwhile()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


class Stoppable(Protocol):
    """A run or a search that can be asked to save and stop."""

    @property
    def stop_asked(self) -> bool:
        """Whether that was asked for."""
        ...

    def ask_to_stop(self) -> None:
        """Ask for it."""
        ...


@contextmanager
def stop_on_signals(job: Stoppable, say: Callable[[str], None], what: str) -> Iterator[None]:
    """On Ctrl-C or SIGTERM a job saves and stops, and it is said; on the second one this command ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:  # noqa: ARG001 - what signal handlers take
        if job.stop_asked:
            raise KeyboardInterrupt
        job.ask_to_stop()
        say(f"{what} (once more: stop at once, without saving)")

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
