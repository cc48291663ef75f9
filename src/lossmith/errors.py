"""What lossmith raises: one sentence that says which argument, what was expected and what came."""


class LossmithError(Exception):
    """Base of every error that lossmith raises on purpose; the command line prints it and exits with 2."""


class ObjectiveInputError(LossmithError, ValueError):
    """A loss was named, configured or called wrongly."""


class ObjectiveCheckError(LossmithError, AssertionError):
    """An objective breaks a rule that every loss obeys; the message names each failed check."""


class CompositionError(ObjectiveInputError):
    """A composition string cannot be read; the message carries a caret under the place."""


class ConfigurationError(LossmithError, ValueError):
    """A study, recipe or command-line setting is wrong or contradicts another."""


class DataError(LossmithError, ValueError):
    """A task's data cannot be used as it is."""


class ModelError(LossmithError, ValueError):
    """A model cannot be found or does not fit the task."""


class EvidenceError(LossmithError, RuntimeError):
    """A results folder or store cannot be used: another configuration, another schema, not writable."""


class JudgeError(LossmithError, RuntimeError):
    """A judge cannot be reached, refuses, or never answers in the asked format; what is stored is kept."""


class MissingExtraError(LossmithError, ImportError):
    """An optional part of lossmith is not installed."""


class TrainingDivergedError(LossmithError, ArithmeticError):
    """The training loss stopped being a finite number."""

    def __init__(self, step: int, last_losses: list[float]):
        self.step = step
        self.last_losses = last_losses
        shown = ", ".join(f"{value:.4g}" for value in last_losses)
        super().__init__(f"The training loss is not finite at step {step}; the last losses were [{shown}].")

    def __reduce__(self):
        return type(self), (self.step, self.last_losses)


class LossmithWarning(RuntimeWarning):
    """Something is defined but perhaps not what was meant, such as a class with a single row in a batch."""
