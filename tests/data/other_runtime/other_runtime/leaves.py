"""Ends the program that imports it, with words for a terminal."""

import sys

sys.exit("\x1b[2Ja stranger's words\nWhat to do: nothing")
