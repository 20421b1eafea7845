"""Read the challenge's pictures.

paths     Find the picture files that rows name: below the data folder, and nowhere else
files     Look at a picture's file before it is opened; refuse what is no file
depth     Bring samples of 10, 12, 16, 32 bits or fractions to 8 bits
decoding  Decode a file as the model sees it: RGB, upright, on white, within bounds
copies    Open a picture; keep a reduced copy of each large one
crops     Cut pictures into equal parts
prepared  Keep pictures as a model is shown them, in the folder of its base
images    Read image files once: content hash, size and perceptual hash, kept in images.csv
notes     Say which rows show an odd picture
"""
