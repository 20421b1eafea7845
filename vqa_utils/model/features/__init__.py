"""Run the vision tower once for each picture, and keep what it makes.

The tower is frozen, so a picture's features never change: neither its weights (1.1 GiB of the 30B)
nor its work (a fifth of a scoring pass) are needed again once all pictures went through it.

    before   pixels -> vision tower -> features -> language model      in each pass of each fold
    here     pixels -> vision tower -> features -> a file a picture    once
                                       features -> language model      in each pass of each fold

encoding  Run the tower for the pictures that have no file yet
stand_in  Take the tower's place in the model
store     The files
"""
