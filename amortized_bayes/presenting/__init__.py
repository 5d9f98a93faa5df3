"""Tables, figures and sentences of a run."""
