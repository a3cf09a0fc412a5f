"""Looking at a site's data and saying what is usable: the look, its tables and its report."""
