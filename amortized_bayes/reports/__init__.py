"""What all reports of the library have in common: a frame, means, words, a figure, a file."""
