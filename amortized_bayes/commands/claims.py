"""``claims``: published claims beside what finished runs measured, with verdicts, and the largest differences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Claims"]


@dataclass(frozen=True)
class Claims:
    """Decide from finished runs which published claims hold, and print a page in Markdown.

    Args:
        out: Folder with results.
        into: File to write the page to; without one it is printed.
        differences: Print the largest differences from published numbers instead, or with --into write them into the
            block of that page.
    """

    out: Path = Path("results/reported")
    into: Path | None = None
    differences: bool = False

    def run(self, given: list[str]) -> None:
        """Make the page."""
        del given
        from amortized_bayes.results.durable import write_atomically

        if self.into is not None and self.into.is_dir():
            raise ValueError(f"expected a file as --into, got {self.into}: a folder")
        page = self._page()
        if self.into is None:
            print(page, end="")
        else:
            write_atomically(self.into, page.encode())
            print(self.into)

    def _page(self) -> str:
        from amortized_bayes.presenting.claims_page import claims_page
        from amortized_bayes.presenting.differences import largest_differences, with_differences

        if not self.differences:
            return claims_page(self.out)
        if self.into is None:
            return f"{largest_differences(self.out)}\n"
        return with_differences(self.into.read_text(encoding="utf-8"), self.out)
