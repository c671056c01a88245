"""What reproduces the tables of *Show and Tell* and of papers on metrics; using a captioner needs none of it."""
