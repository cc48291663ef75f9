"""Detached constants held at their value, so that a numerical derivative sees what autograd sees."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lossmith.errors import ObjectiveInputError

# `x.data` is a call of this getter.
_DATA = Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
_DETACHING = (Tensor.detach, torch.detach, _DATA)


class _Constants(TorchFunctionMode):
    """Keeps what is detached on the first pass and returns it again, in the same order, on later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] | None = None
        self._seen: list[Tensor] = []

    def __enter__(self) -> "_Constants":
        self._seen = []
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.kept is None and error[0] is None:
            self.kept = self._seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _DETACHING:
            return result
        if self.kept is not None:
            if len(self._seen) == len(self.kept):
                raise ObjectiveInputError(
                    f"The function detached {len(self.kept)} tensors when it was first called and more now: what it "
                    f"detaches must not depend on its inputs."
                )
            result = self.kept[len(self._seen)]
        # A copy: a detached view moves with its tensor, which gradcheck changes in place.
        self._seen.append(result.clone())
        return result


def hold_constants(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with everything that it detaches fixed at the value of its first call.

    A loss such as `-p.detach() * logp` has a gradient that is not the derivative of its value. With `p` held it is, so
    `torch.autograd.gradcheck` can judge it. Only `.detach()`, `torch.detach` and `.data` are held; a `torch.no_grad()`
    block is not seen. The order of such calls must not depend on the inputs.

    Args:
        function: Any function of tensors.

    Returns:
        A function of the same arguments; call it first at the point where the constants are to be held.

    Example:
        >>> import torch
        >>> def gated(logps):
        ...     return -logps.detach().exp() * logps
        >>> x = torch.tensor([-0.5, -2.0], dtype=torch.float64, requires_grad=True)
        >>> torch.autograd.gradcheck(gated, x, raise_exception=False)
        False
        >>> torch.autograd.gradcheck(hold_constants(gated), x)
        True
    """
    mode = _Constants()

    def held(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return held
