# Completion of the command's words in shells; it asks the command for them.
install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion/qimg.bash
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME qimg)
install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion/_qimg
    DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
