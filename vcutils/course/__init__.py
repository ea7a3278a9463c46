"""What the course needs around the notebooks: pictures drawn by code, pages in cells, notebooks as HTML."""
