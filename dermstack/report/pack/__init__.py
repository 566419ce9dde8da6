"""What an author takes from a run into a paper: checklists, a methods text, figures and tables as files."""
