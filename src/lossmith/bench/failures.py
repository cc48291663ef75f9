"""What went wrong with a contestant, in one line that names no path of the machine."""

import re

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def one_line(error: object) -> str:
    r"""An error as one short line.

    Example:
        >>> one_line(ValueError("no file /home/me/a.txt,\nsorry"))
        'ValueError: no file (path), sorry'
    """
    if isinstance(error, BaseException):
        if out_of_memory(error):
            return "out of memory"
        error = f"{type(error).__name__}: {error}"
    text = re.sub(r"(?<![\w.])~?(?:/[\w.+@-]+){2,}/?", "(path)", " ".join(str(error).split()))
    return text if len(text) <= 160 else text[:157] + "..."
