# Ceph RBD: its header files are all that the build needs, and it does without them.  The libraries
# are loaded when the first image there is opened.
option(QIMG_RBD "Build Ceph RBD in, where librbd's header files are installed" ON)
find_path(QIMG_RBD_INCLUDE rbd/librbd.h)
mark_as_advanced(QIMG_RBD_INCLUDE)
get_target_property(storage_sources storage SOURCES)
if(QIMG_RBD AND QIMG_RBD_INCLUDE)
    set(QIMG_HAS_RBD TRUE)
    list(FILTER storage_sources EXCLUDE REGEX "/rbd_absent\\.c$")
else()
    message(STATUS "librbd's header files aren't installed: Ceph RBD is left out")
    # What only takes names apart stays.
    list(FILTER storage_sources EXCLUDE REGEX "/rbd(_call|_connect|_io|_library|_link|_lock|_size|_status|_task)?\\.c$")
endif()
set_target_properties(storage PROPERTIES SOURCES "${storage_sources}")
