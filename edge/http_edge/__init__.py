"""What both HTTP servers do before their applications: bounds on what one client may take."""
