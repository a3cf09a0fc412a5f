"""HTML pages from templates that escape what is put into them."""
