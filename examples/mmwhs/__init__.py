"""MMGL on whole-heart segmentation, end to end."""
