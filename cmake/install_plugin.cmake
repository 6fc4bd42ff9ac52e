# Where the plugin goes.  nbdkit looks for plugins in one folder, which lies below the prefix of
# nbdkit and not below ours:
#
#     NBDKIT_PLUGINDIR given          there (below the prefix, when it is relative)
#     the prefix is CMake's default   in nbdkit's folder, so that `nbdkit qimg` finds it
#     another was chosen              in the same folder below that one
set(NBDKIT_PLUGINDIR "" CACHE STRING
    "Where the plugin is installed; empty: in nbdkit's folder, or in its like below a chosen prefix")
pkg_get_variable(nbdkit_folder nbdkit plugindir)
pkg_get_variable(nbdkit_prefix nbdkit prefix)
cmake_path(RELATIVE_PATH nbdkit_folder BASE_DIRECTORY "${nbdkit_prefix}" OUTPUT_VARIABLE relative_folder)
if(relative_folder MATCHES "^\\.\\.")
    set(relative_folder "${CMAKE_INSTALL_LIBDIR}/nbdkit/plugins")
endif()

# `cmake --install --prefix` decides last, so this is for the time of the installation; file() heeds
# DESTDIR.
install(CODE "
    set(folder \"${NBDKIT_PLUGINDIR}\")
    if(folder STREQUAL \"\" AND CMAKE_INSTALL_PREFIX STREQUAL \"/usr/local\")
        set(folder \"${nbdkit_folder}\")
    elseif(folder STREQUAL \"\")
        set(folder \"${relative_folder}\")
    endif()
    cmake_path(ABSOLUTE_PATH folder BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\")
    file(INSTALL DESTINATION \"\${folder}\" TYPE MODULE FILES \"$<TARGET_FILE:plugin>\")
    if(CMAKE_INSTALL_DO_STRIP)
        execute_process(COMMAND \"${CMAKE_STRIP}\"
            \"\$ENV{DESTDIR}\${folder}/$<TARGET_FILE_NAME:plugin>\" COMMAND_ERROR_IS_FATAL ANY)
    endif()")
