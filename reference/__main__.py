"""Writes the generated parts of the documentation: `python -m reference`."""

from reference.pages import stale_pages

for page, text in stale_pages().items():
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")
