"""What commands over a list share: do what is not done yet, keep failures as rows, and end with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..vocabulary import Entry
from .workflow import results_in

if TYPE_CHECKING:
    from ..evaluation.cohort import Cohort, CohortReport
    from ..evaluation.result import Registration
    from ..tasks import Workers


def run_list(
    items: list[Entry],
    function: Callable[[Entry], Registration],
    report: CohortReport,
    workers: Workers,
    *,
    title: str,
    again: bool,
    load: Callable[[], object],
    tables: Callable[[Sequence[Registration]], None] | None = None,
) -> Cohort:
    """Do the items of a list that are not done yet, and write the tables of all.

    Args:
        items: each with `id`, and with its `request`, by which a result that is there is known.
        function: writes an item's result into the report's folder; see `Workers.each`.
        report: gets all results, and writes the tables and the page.
        workers: do the items.
        title: what the items are, in the plural.
        again: do all.
        load: called before anything is written; raises what the settings are refused with.
        tables: writes further tables of the results.
    Raises:
        RuntimeError: at the end, if items failed.
    """
    from ..evaluation.result import Failure
    from ..tasks import Problem
    from ..transforms.requests import finished

    output = report.output_dir
    done = {} if again else {item["id"]: finished(str(output), item, item["request"]) for item in items}
    report.registrations += [result for result in done.values() if result]
    if number := len(report.registrations):
        print(f"{number} of {len(items)} {title} are done already (--again does them again)", flush=True)
    missing = [item for item in items if not done.get(item["id"])]
    if missing:
        load()
        with results_in(output, missing), workers:
            report.check()
            for item, result in zip(missing, workers.each(function, missing, title), strict=True):
                if isinstance(result, Problem):
                    report.failures.append(Failure(item["id"], item, result.reason))
                else:
                    report.registrations.append(result)
    report.write()
    if tables is not None:
        tables(report.registrations)
    if report.failures:
        first, number = report.failures[0], len(report.failures)
        raise RuntimeError(
            f"{number} of {len(missing)} {title} failed, the others are done; {first.id}: {first.reason}"
        )
    return report.cohort
