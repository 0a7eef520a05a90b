"""The course as data: its problems, and a checker of answers that derives what is true."""
