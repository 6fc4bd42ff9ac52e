# Ceph RBD.  The build needs only librbd's header files; without them RBD is left out.  The libraries
# are loaded with dlopen when the first image on Ceph is opened.
option(QIMG_RBD "Build Ceph RBD in, where librbd's header files are installed" ON)
find_path(QIMG_RBD_INCLUDE rbd/librbd.h)
mark_as_advanced(QIMG_RBD_INCLUDE)
get_target_property(storage_sources storage SOURCES)
if(QIMG_RBD AND QIMG_RBD_INCLUDE)
    set(QIMG_HAS_RBD TRUE)
    list(FILTER storage_sources EXCLUDE REGEX "/rbd_absent\\.c$")
else()
    message(STATUS "librbd's header files aren't installed: Ceph RBD is left out")
    # The file that only parses names stays.
    list(FILTER storage_sources EXCLUDE REGEX "/rbd(_call|_connect|_io|_library|_link|_lock|_size|_status|_task)?\\.c$")
endif()
set_target_properties(storage PROPERTIES SOURCES "${storage_sources}")
