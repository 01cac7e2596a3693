"""What the three cloud backends share."""
