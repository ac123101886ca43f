"""What several test files use: recorded figures, data sets on disk, running a bundle as a user does."""
