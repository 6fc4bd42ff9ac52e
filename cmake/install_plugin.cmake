# Where the plugin is installed.  nbdkit looks for plugins in one folder, which is below nbdkit's own
# prefix, not below the prefix of this project:
#
#     NBDKIT_PLUGINDIR is given        there (if it is relative, below the prefix)
#     the prefix is CMake's default    in nbdkit's folder, so that `nbdkit qimg` finds the plugin
#     another prefix was chosen        below that prefix, at nbdkit's path relative to its own prefix
set(NBDKIT_PLUGINDIR "" CACHE STRING
    "Where the plugin is installed; empty: in nbdkit's folder, or in its like below a chosen prefix")
pkg_get_variable(nbdkit_folder nbdkit plugindir)
pkg_get_variable(nbdkit_prefix nbdkit prefix)
cmake_path(RELATIVE_PATH nbdkit_folder BASE_DIRECTORY "${nbdkit_prefix}" OUTPUT_VARIABLE relative_folder)
if(relative_folder MATCHES "^\\.\\.")
    set(relative_folder "${CMAKE_INSTALL_LIBDIR}/nbdkit/plugins")
endif()

# The folder is chosen when the project is installed, because `cmake --install --prefix` can still
# change the prefix.  file(INSTALL) respects DESTDIR.
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
