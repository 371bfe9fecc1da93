"""A survey of third-party libraries: can their networks be looked at, measured and converted unharmed?"""
