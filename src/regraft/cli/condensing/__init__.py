"""What `regraft condense` shows of its images: scores and a page."""
