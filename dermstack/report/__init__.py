"""HTML pages: the report, the data overview (EDA), external validation, and the model card, with their figures."""
