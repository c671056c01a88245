"""Tables of *Show and Tell* and agreement of metrics with people; not needed to use or score a captioner."""
