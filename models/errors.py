"""The one error that input can raise, in sentences for whoever gave it."""

from __future__ import annotations


class TunecastError(ValueError):
    """Input that cannot be used as asked: one sentence for each fault.

    The sentences are in ``args``; ``str`` puts each on its own line. Whatever else is raised is a
    fault of tunecast itself, or of the machine (`OSError`).

    Examples
    --------
    >>> try:
    ...     raise TunecastError("the table has no rows.", "column 'loss' is missing.")
    ... except TunecastError as error:
    ...     print(error)
    the table has no rows.
    column 'loss' is missing.
    """

    def __str__(self) -> str:
        """Return the sentences, one a line."""
        return "\n".join(map(str, self.args))


def one_line(error: BaseException) -> str:
    """Return what an error of any kind says on one line, without the point at its end."""
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(reason.split()).rstrip(".") or type(error).__name__
