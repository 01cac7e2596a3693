"""Code that the three cloud backends share."""
