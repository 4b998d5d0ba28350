"""Data sets that come with the package: real ones that its extras install, and generated ones.

digits.py   scikit-learn's 1,797 handwritten digits, 8 x 8 pixels
"""
