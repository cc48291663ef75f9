"""Prompt templates: fields are put in literally, in one pass, and never read as code or as another template."""

import re
from collections.abc import Mapping, Sequence

from lossmith._checks import did_you_mean
from lossmith.errors import ConfigurationError
from lossmith.tasks.completion import letters

QUESTION_TEMPLATE = "Question: {question}\nAnswer: "
"""Prompt of a problem whose answer is free."""

OPTIONS_TEMPLATE = "Question: {question}\n{options}\nAnswer: "
"""Prompt of a choice."""

CONTEXT_TEMPLATE = "Question: {question}\n{options}\nContext: {context}\nAnswer: "
"""Prompt of a choice with the fact that it needs."""

MATH_INSTRUCTION = (
    "Solve the problem. Write every calculation as <<expression=result>> and end with #### and the number."
)
"""What a chat model is told before a problem with worked steps."""

CHOICE_INSTRUCTION = "Answer with the letter of the right option only."
"""What a chat model is told before a choice."""

_PLACE = re.compile(r"(?<!\{)\{([^\W\d][^{}\n]*)\}(?!\})")


def placeholders(template: str) -> tuple[str, ...]:
    """Names of the fields that a template holds, each once, in order. `{{x}}`, `{}` and `{0}` are no fields.

    Example:
        >>> placeholders("{question} {question} {{x}} {0.__class__}")
        ('question',)
    """
    return tuple(dict.fromkeys(_PLACE.findall(template)))


def fill(template: str, fields: Mapping[str, str]) -> str:
    r"""Put fields into their places in a template.

    A place is a name in single braces. Fields are copied as they are: braces inside them are text. Whatever else a
    template holds, `{{` and `}}` included, stays.

    Args:
        template: Text with places such as `{question}`.
        fields: Text of each field.

    Raises:
        ConfigurationError: If the template has a place for which there is no field.

    Example:
        >>> fill("Question: {question}\nAnswer: ", {"question": "What is {answer} or {0.__class__}?"})
        'Question: What is {answer} or {0.__class__}?\nAnswer: '
    """
    for name in placeholders(template):
        if name not in fields:
            raise ConfigurationError(
                f"The template {template!r} has a place {{{name}}} for which there is no field."
                f"{did_you_mean(name, fields)} Fields: {', '.join(fields) or 'none'}."
            )
    return _PLACE.sub(lambda place: fields[place[1]], template)


def options_block(choices: Sequence[str]) -> str:
    r"""The options of a choice, one a line, each after its letter.

    Example:
        >>> options_block(["ice", "steam"])
        'A. ice\nB. steam'
    """
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters(len(choices)), choices, strict=True))


def without_frame(prompt: str) -> str:
    r"""A prompt without `Question: ` before it and `Answer: ` after it: what a chat model is asked.

    Example:
        >>> without_frame("Question: 1+1?\nAnswer: "), without_frame("1+1=")
        ('1+1?', '1+1=')
    """
    return prompt.removeprefix("Question: ").rstrip().removesuffix("\nAnswer:")
