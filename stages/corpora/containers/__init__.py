"""Where rows come from: files of any kind, as records of columns with their file and row number."""
