"""Pictures and pages of results: contact sheets, overlays of masks, plots of shifts, the page of clip-gallery."""
