"""The catalogue as a folder of Markdown: an index, one page per family, one picture per loss."""

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path

from lossmith._extras import require
from lossmith.errors import EvidenceError
from lossmith.explain import LossFacts, loss_curve, loss_facts
from lossmith.objectives import ObjectiveRecord, list_losses
from lossmith.report.catalogue_calls import EXAMPLES, calls_text
from lossmith.report.catalogue_guide import BESIDE, DISCOVERY, NOTES, PAGES, SPANS
from lossmith.report.losses import (
    CALLED_WITH,
    MODULE_SETTINGS,
    coupling_text,
    curve_figure,
    settings_text,
    write_file,
)
from lossmith.report.markdown import code, prose, table

COMMAND = "lossmith losses docs --out docs/losses"
START, END = "<!-- losses -->", "<!-- /losses -->"
HEADER = f"<!-- Generated from the docstrings by `{COMMAND}`: edit those, then run it again. -->"
DPI, COLOURS = 110, 32
"""Resolution of the pictures and the size of their palette: about 15 KB each."""


def losses_markdown(folder: str = "docs/losses") -> str:
    """What there is and where to read on, for the README: the names by page, folded so that a terminal shows them."""
    pages = _records_by_page()
    count = sum(map(len, pages.values()))
    lead = (
        f"{count} of them; [{folder}]({folder}/README.md) says how to choose one and has formula, curve, gradient, "
        "defaults and closest relatives of each, when to use it, and where other frameworks differ."
    )
    items = []
    for page, records in pages.items():
        names = ", ".join(_name_and_aliases(record) for record in records)
        call = f"with `{CALLED_WITH[PAGES[page].family]}`"
        if page == "discovered":
            call = f"as those, and of the same family (preference, {len(list_losses('preference'))} in all)"
        text = f"**[{PAGES[page].title}]({folder}/{page}.md)** ({len(records)}), called {call}: {names}."
        items.append(_folded(text, first="- ", then="  "))
    return "\n".join([_folded(lead), "", *items]) + "\n"


def _folded(text: str, *, first: str = "", then: str = "") -> str:
    return textwrap.fill(text, 120, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)


def update_readme(path: Path) -> None:
    """Put the list of losses between the marks `<!-- losses -->` and `<!-- /losses -->` of a Markdown file.

    Raises:
        EvidenceError: If the file cannot be read or written, or lacks the marks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"Cannot read `{path}`: {error.strerror or error}.") from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise EvidenceError(f"`{path}` must hold the marks {START} and {END}: the list of losses stands between them.")
    write_file(path, f"{before}{start}\n{losses_markdown()}{end}{after}".encode())


def catalogue_pages() -> dict[str, str]:
    """File name -> Markdown of the index and of every page; the same text on every run."""
    pages = _records_by_page()
    texts = {f"{page}.md": _page(page, records) for page, records in pages.items()}
    return {"README.md": _index(pages), **texts}


def write_catalogue(folder: Path) -> list[Path]:
    """Write the pages and the pictures of all losses into `folder`; other files there stay.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        EvidenceError: If a file cannot be written.
    """
    require("matplotlib", extra="train", purpose="draw the losses")
    contents = {name: text.encode() for name, text in catalogue_pages().items()}
    for record in list_losses():
        contents[f"{record.name}.png"] = picture(record)
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]


def picture(record: ObjectiveRecord) -> bytes:
    """Loss, gradient and implied target of a loss at its defaults, beside what explains them, as a small PNG."""
    from PIL import Image

    from lossmith.explain.canvas import png_bytes

    texts = (record.name, *BESIDE.get(record.name, ()))
    figure = curve_figure(*(loss_curve(text, span=SPANS.get(record.name)) for text in texts))
    drawn = Image.open(io.BytesIO(png_bytes(figure, dpi=DPI))).convert("RGB")
    buffer = io.BytesIO()
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _records_by_page() -> dict[str, list[ObjectiveRecord]]:
    pages: dict[str, list[ObjectiveRecord]] = {page: [] for page in PAGES}
    for record in list_losses():
        pages[_page_of(record)].append(record)
    return pages


def _page_of(record: ObjectiveRecord) -> str:
    return "discovered" if record.source == DISCOVERY else record.family


def _links() -> dict[str, str]:
    """Name or alias -> address of its section, from any page of the folder."""
    return {
        name: f"{_page_of(record)}.md#{record.name}"
        for record in list_losses()
        for name in (record.name, *record.aliases)
    }


def _index(pages: dict[str, list[ObjectiveRecord]]) -> str:
    links = _links()
    records = [record for page in pages.values() for record in page]
    return _joined(
        HEADER,
        "# The losses",
        f"{len(records)} objectives, each one pure function. `lossmith.loss(name)` builds any of them, "
        "`lossmith.list_losses()` is this list as data, and `lossmith losses show NAME` prints one with its curve. "
        "[How to choose](#how-to-choose) · [All losses](#all-losses) · [How to call them](#how-to-call-them) · "
        "[Aliases](#aliases) · [Coupled over the batch](#coupled-over-the-batch)",
        "## How to choose",
        prose(
            "Find your data first, then your situation. The names are where to begin; each section says when *not* to "
            "use its loss, too. Then measure: `lossmith compare` gives the difference to `cross_entropy` over paired "
            "seeds with its interval. Losses combine: `0.6*cross_entropy + 0.4*lovasz_softmax`."
        ),
        *(_guide(page, links) for page in pages),
        "## All losses",
        *(_family_table(page, of_page) for page, of_page in pages.items()),
        "## How to call them",
        "Every loss of a family takes the same inputs, and ignores those it does not read. Each page begins with an "
        "example that runs.",
        _calls(pages),
        calls_text(records, links),
        "## Aliases",
        "\n".join(
            f"- `{alias}` is [`{record.name}`]({links[record.name]})" for record in records for alias in record.aliases
        ),
        "## Coupled over the batch",
        prose(
            "The loss of an item depends on the other items of the batch, so that several micro-batches under gradient "
            "accumulation do not equal one batch; `loss.batch_coupled` says so. Region losses are not coupled with "
            "`region='sequence'`. `kto` with `running_kl=True` and `bco_pair` with `running_delta=True` become coupled "
            "through their running mean.",
            links,
        ),
        "\n".join(
            f"- [{PAGES[page].title}]({page}.md): "
            + ", ".join(f"[`{record.name}`]({links[record.name]})" for record in of_page if record.batch_coupled)
            for page, of_page in pages.items()
            if any(record.batch_coupled for record in of_page)
        ),
    )


def _guide(page: str, links: dict[str, str]) -> str:
    rows = [(prose(situation), prose(advice, links)) for situation, advice in PAGES[page].guide]
    return f"### {PAGES[page].title}: which one\n\n{table(('situation', 'begin with'), rows)}"


def _family_table(page: str, records: list[ObjectiveRecord]) -> str:
    rows = [
        (
            f"[`{record.name}`]({page}.md#{record.name})",
            prose(record.summary),
            code(settings_text(record)),
            "coupled" if record.batch_coupled else "",
        )
        for record in records
    ]
    header = ("loss", "what minimising it does", "hyper-parameters", "batch")
    return f"### [{PAGES[page].title}]({page}.md)\n\n{table(header, rows)}"


def _calls(pages: dict[str, list[ObjectiveRecord]]) -> str:
    rows = []
    for page, records in pages.items():
        items = dict.fromkeys(record.item for record in records)
        rows.append(
            (f"[{PAGES[page].title}]({page}.md)", f"`loss({CALLED_WITH[PAGES[page].family]})`", ", ".join(items))
        )
    return table(("losses", "call", "one loss per"), rows)


def _page(page: str, records: list[ObjectiveRecord]) -> str:
    links = _links()
    contents = " · ".join(f"[`{record.name}`](#{record.name})" for record in records)
    return _joined(
        HEADER,
        f"# {PAGES[page].title}",
        prose(PAGES[page].intro, links),
        f"Called as `loss({CALLED_WITH[PAGES[page].family]})`. [How to choose](README.md#how-to-choose).",
        *([EXAMPLES[page]] if page in EXAMPLES else []),
        contents,
        *(block for record in records for block in _section(record, links)),
    )


def _section(record: ObjectiveRecord, links: dict[str, str]) -> Iterator[str]:
    facts = loss_facts(record)
    yield f"## {record.name}"
    yield f"**{prose(record.summary)}**"
    yield prose(facts.formula, links)
    yield _curves(record, links)
    yield _settings(record, facts, links)
    yield f"**Use when.** {prose(facts.use_when, links)}"
    yield f"**Value.** {prose(facts.returns, links)}"
    yield f"**Closest relatives.** {prose(facts.relatives, links)}"
    # Names of other frameworks, and of the same loss there, are not ours to link.
    yield f"**Elsewhere.** {prose(facts.elsewhere)}"
    yield f"**Source.** {prose(facts.reference)}"
    yield f"**Deviation.** {prose(facts.deviation[:1].upper() + facts.deviation[1:])}"
    yield _facts_of_the_record(record, links)


def _curves(record: ObjectiveRecord, links: dict[str, str]) -> str:
    # Neither the names nor the sentence on the setting depend on the number of points.
    curve = loss_curve(record.name, points=2, span=SPANS.get(record.name))
    panels = "Loss and gradient" if curve.implied_target is None else "Loss, gradient and implied target"
    shown = f"![{panels} of {record.name} over the {curve.x_name}. {curve.setting}]({record.name}.png)"
    beside = ", ".join(_code_link(text, links) for text in BESIDE.get(record.name, ()))
    caption = [f"Beside it: {beside}."] if beside else []
    if record.name in NOTES:
        caption.append(prose(NOTES[record.name], links))
    return f"{shown}\n\n{' '.join(caption)}" if caption else shown


def _code_link(text: str, links: dict[str, str]) -> str:
    return f"[`{text}`]({links[text]})" if text in links else f"`{text}`"


def _settings(record: ObjectiveRecord, facts: LossFacts, links: dict[str, str]) -> str:
    if not record.hyperparameters:
        return "No hyper-parameters."
    meanings = {**MODULE_SETTINGS, **facts.meanings}
    rows = [
        (f"`{name}`", f"`{default!r}`", prose(meanings[name], links))
        for name, default in record.hyperparameters.items()
    ]
    return table(("hyper-parameter", "default", "meaning"), rows)


def _facts_of_the_record(record: ObjectiveRecord, links: dict[str, str]) -> str:
    reads = ", ".join(f"`{name}`{_condition(record, name)}" for name in record.reads)
    lines = [
        f"Family {record.family}, one loss per {record.item}; {coupling_text(record)}.",
        f"Reads {reads}.",
        f"`lossmith.objectives.{record.function.__name__}` is the pure function, "
        f'`lossmith.loss("{record.name}"{_sizes(record)})` the module.',
    ]
    if record.aliases:
        lines.insert(0, f"Alias {code(record.aliases)}.")
    if record.proxy_shape:
        lines.append(f"Owns `proxies`, learnable: {' x '.join(f'`{size}`' for size in record.proxy_shape)}.")
    for name, better in record.instead.items():
        lines.append(f"Looking for `{name}`? That is {_code_link(better, links)}.")
    return "\n".join(f"- {line}" for line in lines)


def _condition(record: ObjectiveRecord, statistic: str) -> str:
    if statistic not in record.needed_when:
        return ""
    name = record.needed_when[statistic]
    switch = isinstance(record.hyperparameters[name], bool)
    return f" (only with `{name}`)" if switch else f" (only where `{name}` is not 0)"


def _sizes(record: ObjectiveRecord) -> str:
    return "".join(f", {name}=..." for name in record.required)


def _name_and_aliases(record: ObjectiveRecord) -> str:
    return f"`{record.name}`" + (f" (alias {code(record.aliases)})" if record.aliases else "")


def _joined(*blocks: str) -> str:
    return "\n\n".join(blocks) + "\n"
