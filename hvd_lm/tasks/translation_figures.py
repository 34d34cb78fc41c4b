"""How good translations are, by sacrebleu (Post 2018, arXiv:1804.08771): BLEU and chrF, with what makes them comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hvd_lm.errors import FrameworkError


@dataclass(frozen=True)
class TranslationFigures:
    """Of texts whose translations are known."""

    bleu: float
    """Of 100 (Papineni et al. 2002)."""
    bleu_signature: str
    """How it was computed, as sacrebleu writes it."""
    chrf: float
    """Of 100 (Popovic 2015)."""
    chrf_signature: str
    texts: int
    """That were translated."""
    texts_per_second: float
    """Of all ranks together, without the time to load the model."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def translation_figures(translations: Sequence[str], references: Sequence[str], seconds: float) -> TranslationFigures:
    """Of `translations`, one reference for each. Raises as `metrics`."""
    both = metrics()
    found = [metric.corpus_score(list(translations), [list(references)]).score for metric in both]
    signatures = [str(metric.get_signature()) for metric in both]
    return TranslationFigures(found[0], signatures[0], found[1], signatures[1], len(references), len(references) / seconds)


def metrics() -> tuple[Any, Any]:
    """BLEU and chrF. Raises FrameworkError if sacrebleu is absent."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise FrameworkError(f"sacrebleu does not load ({error}): pip install 'hvd_lm[translation]'") from error
    return BLEU(), CHRF()
