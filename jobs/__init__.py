"""One script a job: parse the options, call one function, say what was made."""
