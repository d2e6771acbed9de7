"""A company's own tables: workbook or folder in, checked; demand from sales; a setting for every item."""
