"""Token rows of a study and the cache they come from."""

from pathlib import Path

import tiny
from lossmith.integrations.causal_lm.encoding import PromptFormat
from lossmith.integrations.causal_lm.loading import load_causal_lm
from lossmith.integrations.models import resolve_model
from lossmith.studies import make_config
from lossmith.studies.encoded import encode_study
from lossmith.tasks import load_completion_task


def test_a_template_that_prints_the_day_is_not_answered_from_another_days_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_CACHE", str(tmp_path / "cache"))
    model = tiny.write_causal_model(tmp_path / "tiny")
    task = tiny.write_sums(tmp_path / "sums")
    config = make_config({"task": str(task), "model": str(model), "losses": ["cross_entropy"], "max_length": 96})
    problems = load_completion_task(task).test
    _, tokenizer = load_causal_lm(resolve_model(str(model)))

    class Dated(PromptFormat):
        day = "1"

        def _plain(self, prompt: str) -> str:
            return f"{self.day} {prompt}"

    form = Dated(tokenizer)
    first = encode_study(config, form, "model", problems)
    assert encode_study(config, form, "model", problems) == first
    form.day = "2"
    second = encode_study(config, form, "model", problems)
    for row, problem in zip(second.rows, problems, strict=True):
        assert row.input_ids[: row.answer_start] == form.prompt_ids(problem.prompt, problem.question)
    assert second != first
    assert len(list(Path(tmp_path / "cache" / "tokens").glob("*.parquet"))) == 2
