"""One engine for ``compare`` and the sweep: guides fitted to the same data from the same start, and told apart."""
