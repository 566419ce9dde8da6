"""What should be known before a number is believed: leaks, shortcuts, drift, doubtful labels, with evidence."""
