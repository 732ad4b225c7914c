"""The web examples under real servers, with workers that are killed."""
