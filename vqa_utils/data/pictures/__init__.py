"""Read the challenge's pictures.

images  Read image files once: content hash, size and perceptual hash, kept in images.csv
"""
