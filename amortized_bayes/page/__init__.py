"""One page of HTML about whatever was found: one file, without scripts, that needs nothing from outside. No torch."""
